"""Evaluations and analyses as folders: tables, figures, and a page of HTML that shows them all."""

from molecular.analysis.report.evaluation import write_evaluation
from molecular.analysis.report.figures import DrawnFigure, draw_figures
from molecular.analysis.report.free_energies import save_analysis
from molecular.analysis.report.viewer import ViewedEnsemble, view_of

__all__ = ["DrawnFigure", "ViewedEnsemble", "draw_figures", "save_analysis", "view_of", "write_evaluation"]

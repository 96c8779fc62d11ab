"""Handwritten digits of 8 × 8 pixels: pictures of scikit-learn in class folders, and a flow of them that is shipped."""

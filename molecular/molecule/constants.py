"""Physical constants."""

MOLAR_GAS_CONSTANT = 8.31446261815324e-3  # kJ/mol/K, CODATA 2018: kT in kJ/mol is this times the temperature

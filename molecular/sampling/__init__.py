"""Weighted equilibrium samples: importance sampling and sequential Monte Carlo."""

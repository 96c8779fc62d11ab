"""Molecules: what is known of their atoms, without a flow."""

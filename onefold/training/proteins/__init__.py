"""Fitting the contact head of an encoder of proteins."""

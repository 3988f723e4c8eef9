"""Figures: their data, and Plotly's drawing of them."""

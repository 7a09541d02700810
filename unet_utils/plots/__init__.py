"""Figures: of the data (`data`), while training (`training`), of the results (`results`), and of
what a trained model can bear (`robustness`)."""

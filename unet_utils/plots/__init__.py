"""Figures: of the data (`data`), while training (`training`) and of the results (`results`)."""

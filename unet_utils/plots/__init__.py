"""Figures: of the data (`data`), of a training (`training`, `live`, `time_lapse`), of several
(`strip`), of results (`results`, `inspector`), and of what a model can bear (`robustness`)."""

"""The machine: where the notebook runs, files, the archive, Kaggle."""

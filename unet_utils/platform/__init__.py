"""The machine: where the notebook runs, its files, archives, the download from Kaggle."""

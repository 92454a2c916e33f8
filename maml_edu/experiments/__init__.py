"""The runs behind the stored results: settings, training, scores, provenance."""

"""MLflow: runs, registered models, promotion, comparison and lineage."""

"""One module per stage: where DVC, Prefect and MLflow meet the method."""

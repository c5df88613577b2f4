"""What steps jobs: the dispatcher, the creator, and one module per kind of job."""

"""The Celery application: the only part of the service that loads torch."""

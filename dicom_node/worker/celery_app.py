"""The application by the name under which the spawned child imports it."""

from dicom_node.settings import load
from dicom_node.worker.app import make_worker_app

app = make_worker_app(load())

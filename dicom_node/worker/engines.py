"""Owns the warm models of one worker process; the only way from the service to torch."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import select

from dicom_node.domain.model import ModelState
from dicom_node.services.context import Node
from dicom_node.services.models import open_trusted
from dicom_node.store.tables import Model
from inference.bundle import Bundle
from inference.engine import Engine, Warm, choose_device
from inference.errors import BundleError
from inference.types import ImageStack, Prediction

log = structlog.get_logger(__name__)


class WarmEngines:
    """``services.infer.Engines``: loads a bundle once, verified, and keeps it within a budget."""

    def __init__(self, node: Node) -> None:
        self._node = node
        settings = node.settings.worker
        self._bundles: dict[str, Bundle] = {}
        self.device = choose_device(settings.device)
        self._warm = Warm(settings.model_memory_mb << 20, self.device)

    @property
    def loads(self) -> int:
        """How often weights were loaded since the process began."""
        return self._warm.loads

    def warm_up(self) -> None:
        """Load the active models; one that cannot be loaded is told when a job wants it."""
        with self._node.database.reading() as session:
            running = select(Model.digest).where(Model.state == ModelState.ACTIVE)
            digests = session.scalars(running).all()
        for digest in digests:
            try:
                self._engine(digest)
            except BundleError as error:
                log.error("model not loadable", bundle=digest, reason=str(error))

    def predict(
        self, digest: str, stacks: Sequence[ImageStack], keep_probability: bool = False
    ) -> list[Prediction]:
        """Run the model with this bundle digest on each stack.

        Raises:
            BundleError: the bundle is missing, altered, not the one that was added, or no longer
                trusted.
        """
        return self._engine(digest).predict(stacks, keep_probability)

    def _engine(self, digest: str) -> Engine:
        bundle = self._bundles.get(digest)
        if bundle is None or digest not in self._warm:
            bundle, _ = open_trusted(self._node, digest)
            self._bundles[digest] = bundle
        return self._warm.get(bundle)

"""Asking the web UI's GraphQL, as the browser does; what is asked is the callers' business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cygno_assets.services.process import ServiceError

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class WebUI:
    """A web UI that runs.

    Attributes:
        url: its address, `http://host:port`.
    """

    url: str

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """Asks one question.

        Raises:
            OSError: it does not answer (requests' errors are such).
            ServiceError: it answers with errors.
        """
        import requests

        with requests.Session() as session:
            session.trust_env = False  # it is on this machine: no proxy
            answer = session.post(
                f"{self.url}/graphql",
                json={"query": query, "variables": variables},
                timeout=_TIMEOUT_S,
            )
            answer.raise_for_status()
            content = answer.json()
        if content.get("errors"):
            raise ServiceError(f"the web UI answers: {content['errors'][0].get('message')}")
        return dict(content["data"])

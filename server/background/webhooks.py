"""The keeper's duty for webhooks: sends the events that wait, signed, and tries again what failed."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from functools import partial
from typing import Final

import httpx

from graftwork.adapters.storage.leases import Fence, Lease, Leases
from graftwork.adapters.webhooks.addresses import check_url, resolve
from graftwork.adapters.webhooks.signature import sign
from graftwork.adapters.webhooks.webhooks import Delivery, Webhook, Webhooks
from graftwork.version import __version__

log = logging.getLogger(__name__)

MAX_SECONDS: Final = 10.0
TIMEOUT: Final = httpx.Timeout(MAX_SECONDS)

MAX_ERROR_CHARS: Final = 300


class WebhookSender:
    """Sends what waits for the webhooks of one database.

    Args:
        webhooks: The webhooks and their deliveries.
        leases: Of the database.
    """

    def __init__(self, webhooks: Webhooks, leases: Leases) -> None:
        self._webhooks = webhooks
        self._leases = leases

    def run(self, lease: Lease) -> None:
        """Try everything that is due. A webhook that cannot be reached is left alone until the next time.

        Args:
            lease: Is checked in the transaction of every write.
        """
        fence = self._fence(lease)
        for webhook, deliveries in self._webhooks.due().items():
            for delivery in deliveries:
                error = self._send_in_time(webhook, delivery)
                self._webhooks.record(delivery, error, fence=fence)
                if error is not None:
                    log.warning("webhook %s was not told %s: %s", webhook.id, delivery.type, error)
                    break

    def clean(self, lease: Lease) -> None:
        """Delete deliveries that ended long ago."""
        self._webhooks.clean(fence=self._fence(lease))

    def _fence(self, lease: Lease) -> Fence:
        return partial(self._leases.check, lease=lease)

    def _send_in_time(self, webhook: Webhook, delivery: Delivery) -> str | None:
        """Send a delivery, and wait for the answer no longer than `MAX_SECONDS`, however slowly it drips."""
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.append(self._send(webhook, delivery)), daemon=True)
        thread.start()
        thread.join(MAX_SECONDS)
        return found[0] if found else f"it did not answer within {MAX_SECONDS:g} seconds"

    def _send(self, webhook: Webhook, delivery: Delivery) -> str | None:
        """Send a delivery.

        Returns:
            Why that failed; ``None``: it did not.
        """
        try:
            parts = check_url(webhook.url, allow_private=self._webhooks.allow_private)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
            # The name is looked up once, and what was checked is what is connected to.
            address = resolve(host, port, allow_private=self._webhooks.allow_private)
            headers = {
                "host": parts.netloc,
                "content-type": "application/json",
                "user-agent": f"graftwork/{__version__}",
                **sign(webhook.secret, id=delivery.event, at=datetime.now(UTC), body=delivery.body),
            }
            # No proxy of the environment, no redirect: either could lead to an address that nobody checked.
            with (
                httpx.Client(timeout=TIMEOUT, trust_env=False, follow_redirects=False) as client,
                client.stream(
                    "POST",
                    httpx.URL(webhook.url).copy_with(host=address),
                    content=delivery.body.encode(),
                    headers=headers,
                    extensions={"sni_hostname": host},
                ) as response,
            ):
                # Nobody reads the answer: a long one costs nothing.
                return None if response.is_success else f"it answered {response.status_code}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]

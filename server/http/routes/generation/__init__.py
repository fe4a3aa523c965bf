"""The routes that generate text."""

from __future__ import annotations

from fastapi import APIRouter

from graftwork.server.generation.service import GenerationService
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.routes.generation import chat, messages, responses
from graftwork.server.http.services import Records


def add(routes: APIRouter, authenticator: Authenticator, service: GenerationService, records: Records) -> None:
    """Add the routes of generation."""
    chat.add(routes, authenticator, service)
    responses.add(routes, authenticator, service, records)
    messages.add(routes, authenticator, service)

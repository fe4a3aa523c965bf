"""Webhooks: addresses that are told what happens, by signed requests, whatever crashes in between."""

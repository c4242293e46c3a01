"""WHAM!: WSJ0-2mix in real noise."""

from data_prep.wham.manifests import prepare

__all__ = ["prepare"]

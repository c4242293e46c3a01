"""Mixtures of any recordings of single people."""

from data_prep.talkers.manifests import prepare

__all__ = ["prepare"]

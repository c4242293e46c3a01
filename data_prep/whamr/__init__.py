"""WHAMR!: WHAM! in simulated rooms."""

from data_prep.whamr.manifests import prepare

__all__ = ["prepare"]

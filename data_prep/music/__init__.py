"""MUSDB18-HQ, SDXDB23 and your own stems."""

from data_prep.music.manifests import prepare

__all__ = ["prepare"]

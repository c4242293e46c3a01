"""Libri2Mix and Libri3Mix."""

from data_prep.librimix.manifests import prepare

__all__ = ["prepare"]

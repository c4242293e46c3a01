"""WSJ0-2mix, WSJ0-3mix and folders laid out like them."""

from data_prep.wsj0mix.manifests import prepare

__all__ = ["prepare"]

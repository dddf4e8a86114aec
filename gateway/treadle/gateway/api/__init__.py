"""Entry points of the gateway: each decodes requests for the pipeline and encodes its results."""

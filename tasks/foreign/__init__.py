"""Published models in the layout of diffusers, as denoisers, codecs and conditions; needs the extra `foreign`."""

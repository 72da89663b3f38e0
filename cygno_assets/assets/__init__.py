"""The data assets. Modules here only wire: what is computed is physics/, what is asked is daq/."""

"""The Transfer service's sources and destinations, and the streams they ride on."""

"""All of gRPC and protobuf: channels, codecs, the link to a worker, health.

May import: values, places, security, core.liveness, v1.
"""

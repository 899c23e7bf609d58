"""Values to protobuf messages and back: the only readers and writers of message fields.

Decoders check every integer before they size or index anything by it. They raise `InvalidRequest` naming field, value
and limit; `draft` and `verify` turn that into `ProtocolError` if the sender was a worker.

May import: values, places, security, core.liveness, v1, rpc.
"""

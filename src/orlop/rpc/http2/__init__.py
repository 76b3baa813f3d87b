"""HTTP/2 (RFC 9113) as far as a gRPC server on a unix socket needs it: header compression, frames, flow control.

It knows connections, streams and messages; services are the affair of `orlop.rpc.native`.
"""

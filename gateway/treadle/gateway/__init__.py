"""The gateway: one entry point to every deployed model, over gRPC and REST.

A request goes through `chain.Chain`: routing, features, inference, fallbacks, record. Everything else in this package
feeds it (policies), stands before it (servicer, oip, rest), or carries away what it leaves behind (spool, sender).
"""

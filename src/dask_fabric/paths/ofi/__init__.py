"""libfabric (OFI): frames by RDMA where UCX has none, such as Slingshot, EFA and Omni-Path."""

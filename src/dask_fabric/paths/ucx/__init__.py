"""UCX: frames by RDMA, shared memory and between GPUs, moved by the library libucp."""

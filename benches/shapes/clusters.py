"""Cluster files for `esync sim`, as text: each worker on a host of its own."""


def cluster(title, steps, *, latency_seconds=50e-6, bandwidth=125e6, server_latency_seconds=None, server_bandwidth=None,
            exchange_seconds=None, model_bytes=None, jitter=None):
    """Workers with these seconds of a step, any two joined by a link of `bandwidth` bytes per second.

    The server's card has `server_bandwidth`, as the links have if it is not given."""
    lines = [f"# {title}", "version = 1"]
    if exchange_seconds is not None:
        lines.append(f"exchange_seconds = {exchange_seconds}")
    if model_bytes is not None:
        lines.append(f"model_bytes = {model_bytes}")
    for rank in range(len(steps)):
        lines += ["", "[[hosts]]", f'name = "host{rank}"', "ranks = 1", "cores = 1", "reduce_seconds_per_byte = 1e-10"]
    lines += ["", "[[links]]", 'hosts = "different"', f"latency_seconds = {latency_seconds}",
              f"bandwidth_bytes_per_second = {bandwidth}"]
    lines += ["", "[server]", f"latency_seconds = {server_latency_seconds or latency_seconds}",
              f"bandwidth_bytes_per_second = {bandwidth}",
              f"card_bandwidth_bytes_per_second = {server_bandwidth or bandwidth}"]
    for rank, seconds in enumerate(steps):
        lines += ["", "[[workers]]", f"ranks = [{rank}]", f"step_seconds = {seconds:.6g}"]
        if jitter:
            lines.append(f'jitter = "{jitter}"')
    return "\n".join(lines) + "\n"

"""The results of a benchmark as text."""


def tables(results):
    """The results as text for people."""
    lines = ["", "Machine"]
    for name, value in results["machine"].items():
        if isinstance(value, list):
            value = ", ".join(value)
        lines.append(f"  {name:18s} {value}")
    low, high = (rate / 1e9 for rate in results["matmul_flops_lowest_highest"])
    lines.append(
        f"  {'matrix product':18s} {results['matmul_flops'] / 1e9:.0f} GFLOP/s in "
        f"{results['matmul_precision']} "
        f"({low:.0f} to {high:.0f} during this run)"
    )
    lines.append(
        f"\n{results['hparams']}: {results['parameters'] / 1e6:.1f} M parameters, "
        f"{results['batch_size']} crops of {results['seconds']:g} s, "
        f"{results['precision']}, codec {results['codec']}"
    )
    if step := results.get("step"):
        lines.append(
            f"\nA step as configured, {step['precision']}\n"
            f"  {'part':30s}  seconds   share"
        )
        for name, seconds in step["parts"].items():
            share = seconds / step["seconds"]
            lines.append(f"  {name:30s} {seconds:8.3f} {100 * share:6.1f} %")
        lines.append(f"  {'whole':30s} {step['seconds']:8.3f}")
        lines.append(
            f"  model FLOP utilisation {100 * step['mfu']:.1f} % "
            f"({step['flops'] / 1e9:.0f} GFLOP)"
        )
    if settings := results.get("settings"):
        wide = max(len(row.get("precision", "")) for row in settings.values())
        lines.append(
            "\nSettings            seconds   ratio   MFU %   step's memory (MiB)   "
            "precision"
        )
        for name, row in settings.items():
            if row["seconds"] is None:
                lines.append(f"  {name:15s} {'out of memory':>40s}   {row['what']}")
                continue
            what = f"{row['precision']:{wide}}   {row['what']}"
            memory = row["peak_bytes_of_the_step"]
            memory = "?" if memory is None else f"{memory / 2**20:.0f}"
            lines.append(
                f"  {name:15s} {row['seconds']:9.3f} {row['ratio']:7.2f} "
                f"{100 * row['mfu']:7.1f} {memory:>12s}   {what.rstrip()}"
            )
    if embedding := results.get("embedding"):
        lines.append(
            f"\nEmbedding, float32 is {embedding[0]['precisions']['float32']}\n"
            "  times real time               float32      bf16   error of bf16"
        )
        for row in embedding:
            error = row.get("relative_error")
            error = "" if error is None else f"{100 * error:.2f} %"
            rounded = f"{row['bfloat16']:.1f}" if "bfloat16" in row else "-"
            lines.append(
                f"  {row['file_seconds']:5g} s, batch {row['batch']:2d}"
                f"{row['float32']:19.1f} {rounded:>9s} {error:>12s}"
            )
    if loader := results.get("loader"):
        lines.append(
            f"\nLoader, {loader['workers']} workers: {loader['delivers']:.0f} s of "
            "audio a second"
        )
        if "ratio" in loader:
            lines[-1] += (
                f", {loader['ratio']:.1f} times the {loader['consumes']:.1f} that the "
                "step consumes"
            )
    if processes := results.get("processes"):
        lines.append(
            "\nProcesses that share a step   crops a second   ratio   precision"
        )
        for row in processes:
            speed, one = row["crops_per_second"], processes[0]["crops_per_second"]
            ratio = f"{speed / one:7.2f}" if speed and one else ""
            speed = f"{speed:41.2f}" if speed else f"{'failed, see above':>41s}"
            line = f"  {row['processes']:2d} {speed} {ratio:>7s}"
            lines.append(f"{line}   {row.get('precision', '')}".rstrip())
    return "\n".join(lines)

"""What the machine and its operating system give: memory, CPUs, processes, signals and files."""

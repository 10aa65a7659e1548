"""The same objectives and verifiers inside the engines that people scale out with: `trl` and `verl`."""

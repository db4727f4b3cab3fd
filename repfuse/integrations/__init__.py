"""repfuse as a part of other toolchains: a module for each, which needs that toolchain's package."""

"""Regular packages: a dependency installs one named `examples`, which would win over a namespace package."""

"""How the stored job of FLARE was made is no test: it needs FLARE."""

collect_ignore = ["flare_job"]

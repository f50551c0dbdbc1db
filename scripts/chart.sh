#!/usr/bin/env bash
# The first chart of a report.html of `dlm-train eval --tasks` as an SVG file of its own, with its title and legend.
#   scripts/chart.sh REPORT.html OUT.svg
set -euo pipefail
awk '
    /^:root|^  --c0|^@media|^svg .raw, |^\.(grid|axis|tick|main|dot|k0) / { style = style $0 "\n" }
    /<figcaption>/ && !legend {
        text = $0
        sub(/.*<h2>/, "", text); title = text; sub(/<\/h2>.*/, "", title)
        n = split($0, keys, /<span class="key /)
        x = 58; y = -26
        for (i = 2; i <= n; i++) {
            class = keys[i]; sub(/".*/, "", class)
            name = keys[i]; sub(/[^>]*>/, "", name); sub(/<.*/, "", name)
            wide = 40 + 6.6 * length(name)
            if (x + wide > 640) { x = 58; y += 18 }
            legend = legend sprintf("<path class=\"main %s\" d=\"M%d %dh18\"/><text class=\"tick\" x=\"%d\" y=\"%d\">%s</text>\n", class, x, y - 4, x + 23, y, name)
            x += wide
        }
        next
    }
    /<svg / && !body { sub(/<svg [^>]*>/, ""); inside = 1 }
    inside { if (sub(/<\/svg>.*/, "")) { inside = 0; done = 1 } body = body $0 "\n" }
    done { exit }
    END {
        if (body == "") { print "no chart in the report" > "/dev/stderr"; exit 1 }
        printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -62 640 322\">\n<style>\n%s</style>\n", style
        print "<rect x=\"0\" y=\"-62\" width=\"640\" height=\"322\" style=\"fill: var(--card)\"/>"
        printf "<text class=\"tick\" x=\"58\" y=\"-46\" style=\"font-weight: 600\">%s</text>\n%s%s</svg>\n", title, legend, body
    }' "$1" >"$2"

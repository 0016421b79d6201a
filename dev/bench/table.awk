# table.awk: sets the lines of bench_models and bench_ops beside PyTorch's of the same name and size.
#     awk -v part=models|shares|ratios -v mini=0|1 -f table.awk OURS.json TORCH.json
# models   whole models and steps, in the order of OURS.json
# shares   operations, each behind its share of the limit and a tab: to be sorted
# ratios   operations that PyTorch does faster, likewise behind how many times
# mini     1: with the operations of the miniature
# A line of either file is one JSON object, with a space behind each colon. The faster of PyTorch's modes counts.

# The value of a field in this line, without quotes; "" where there is none.
function field(name,    text, at) {
    at = index($0, "\"" name "\": ")
    if (!at) return ""
    text = substr($0, at + length(name) + 4)
    if (substr(text, 1, 1) == "\"") {
        text = substr(text, 2)
        return substr(text, 1, index(text, "\"") - 1)
    }
    sub(/[,}].*/, "", text)
    return text
}
function ratio(theirs, ours) { return theirs != "" && ours > 0 ? sprintf("%7.2fx", theirs / ours) : sprintf("%8s", "-") }

{ kind = field("kind") }
kind == "model" { key = field("name") "|" field("images"); time = field("seconds") + 0 }
kind == "op" { key = field("name") "|" field("where"); time = field("us") + 0 }
FILENAME != ARGV[1] { # PyTorch's
    if (!(key in torch) || time < torch[key]) {
        torch[key] = time
        mode[key] = field("mode")
        peak[key] = field("peak_gib")
    }
    next
}
kind == "limits" || kind == "complexity" { next }
kind == "model" && part != "models" { next }
kind == "op" && (part == "models" || (!mini && field("where") ~ /^mini/)) { next }
{
    if (!(key in ours)) order[++n] = key
    ours[key] = time
    line[key] = $0
}

END {
    for (i = 1; i <= n; i++) {
        key = order[i]
        $0 = line[key]
        time = ours[key]
        theirs = key in torch ? torch[key] : ""
        if (part == "models") {
            images = field("images")
            memory = field("used_gib") > 0 ? field("used_gib") : field("planned_gib")
            printf "%-14s %6d %10.2f %10.1f %9.1f %6.0f%% %8.1f", field("name"), images, 1e3 * time, images / time,
                1e-3 * field("gflops"), 100 * field("share"), memory
            if (theirs == "") printf "%12s %10s %8s  %-13s %8s\n", "-", "-", "-", "", ""
            else printf "%12.2f %10.1f %8.1f  %-13s %s\n", 1e3 * theirs, images / theirs, peak[key], mode[key],
                ratio(theirs, time)
            continue
        }
        compute = field("compute_share")
        memory = field("memory_share")
        text = sprintf("%-32s%-20s%10.1f %9s %8.0f %6.0f%% %-7s %10s %s", field("name"), field("where"), time,
            compute > 0 ? sprintf("%.1f", field("tflops")) : "", field("gbs"), 100 * field("share"),
            compute > memory ? "compute" : "memory", theirs == "" ? "-" : sprintf("%.1f", theirs), ratio(theirs, time))
        if (part == "shares") printf "%s\t%s\n", field("share"), text
        else if (theirs != "" && theirs < time) printf "%.4f\t%s\n", theirs / time, text
    }
}

# page.awk: from the raw scores of dev/paper.sh to docs/paper.md and its plots.
#
#     awk -f dev/paper/page.awk dev/paper/runs.txt dev/paper/published.txt docs/results/paper.jsonl docs/paper.md     the page, anew
#     awk -v figure=3 -f dev/paper/page.awk dev/paper/runs.txt docs/results/paper.jsonl | build/cpu/plot FILE.png     a plot
#
# The page is text that people wrote, with places that are filled here:
#     <!-- table: SCORES: RUNS -->     what stands below it up to <!-- end --> becomes the paper's table, and ours
#     <!-- ours: SCORES: RUNS -->      the same, ours alone
#     <!-- noise: SCORES -->           the deviation between seeds
#     <!-- processors: -->             where the scores were measured
#     <!-- claim: SCORE: A < B -->     the rest of the line becomes the verdict; <, >, = between two or more runs, or points RUN@STEPS
# A verdict is a rule's. Each score has a noise: the deviation between seeds, pooled over all runs that have several. A difference d of two
# means over the n seeds that the runs have in common counts if |d| > 2 noise sqrt(2 / n); "=" asks that it does not. Distances (FD, LPIPS)
# and variances are compared by their logarithms, since their noise grows with them; guided and unconditional samples, and those of longer
# training, of one seed, have the noise of the others. In our tables a score that was measured, also in part, elsewhere than most is marked, and so is a
# verdict between scores of one seed from several processors.

BEGIN {
    FS = " *[|] *"
    split("rFID FD-mini,PSNR PSNR,LPIPS LPIPS-mini,probe probe whole latent %,probe_mean probe mean latent %," \
          "CKNNA CKNNA,SV spatial var,TV total var,CV density CV,Gini Gini,entropy entropy", eval_names, ",")
    split("rFID 1 rFD-mini,PSNR 2 PSNR,LPIPS 4 LPIPS-mini,probe 1 probe %,probe_mean 1 probe % (mean of the latent)," \
          "gFID 1 gFD-mini,recognised 1 recognised %,IS 2 IS-mini,precision 2 precision-mini,recall 2 recall-mini,gFID_cfg 1 gFD-mini (guided),scale 2 its scale,gFID_uncond 1 gFD-mini (unconditional)," \
          "gFID_longer 1 gFD-mini (1200 steps),recognised_longer 1 recognised % (1200 steps)," \
          "probe_few 1 probe % (500 images),probe_mean_few 1 probe % (mean of the latent; 500 images)," \
          "CKNNA 3 CKNNA,SV 3 spatial var,TV 1 total var,CV 3 density CV,Gini 3 Gini,entropy 4 entropy,sampled 1 gFD-mini,guided 1 gFD-mini", shown, ",")
    for (i in shown) {
        split(shown[i], part, " ")
        decimals[part[1]] = part[2]
        title[part[1]] = substr(shown[i], length(part[1]) + length(part[2]) + 3)
    }
}

/^#/ && FILENAME ~ /txt$/ { next }
FILENAME ~ /runs.txt$/ && NF > 4 { read_run() }
FILENAME ~ /published.txt$/ { read_published() }
FILENAME ~ /jsonl$/ { read_scores() }
FILENAME ~ /md$/ { fill() }
END { if (figure == 3) figure3(); if (figure == 4) figure4() }

# ---- reading

function read_run(    n, at) {
    from[$1] = $2
    n = split($3, at, ",")
    steps[$1] = at[n]
    label[$1] = $5
}
function read_published(    n, part, pair, i) { # run score=value ...
    n = split($0, part, " +")
    for (i = 2; i <= n; i++) {
        split(part[i], pair, "=")
        published[part[1], pair[1]] = pair[2]
    }
}

# A member of a JSON line: the text from its value on.
function member(name,    key) {
    key = "\"" name "\": "
    return index($0, key) ? substr($0, index($0, key) + length(key)) : ""
}
function word(name,    value) {
    value = substr(member(name), 2)
    return substr(value, 1, index(value, "\"") - 1)
}

# A score of a run and seed: the one after most steps counts. Seed 1's at each number of steps are the points of a curve.
function keep(score, value) {
    if (value == "") return
    if (seed == 1) keep_point(score, value)
    if ((run, score, seed) in latest && latest[run, score, seed] > at) return
    latest[run, score, seed] = at
    final[run, score, seed] = value + 0
    measured[run, score, seed] = processor
}
function keep_point(score, value) {
    curve[run, score, at] = value + 0
    measured[run "@" at, score, 1] = processor
}
function read_scores(    i, name, folder, subject) {
    run = word("run")
    seed = member("seed") + 0
    at = member("at") + 0
    folder = word("folder")
    processor = word("processor")
    date[processor] = word("date") > date[processor] ? word("date") : date[processor]
    lines[processor]++
    if (most == "" || lines[processor] > lines[most]) most = processor
    if (folder == "dit") {
        keep("gFID", member("FD-mini"))
        keep("recognised", member("recognised %"))
        keep("IS", member("IS-mini"))
        keep("precision", member("precision-mini"))
        keep("recall", member("recall-mini"))
    } else if (folder == "unconditional") {
        keep("gFID_uncond", member("FD-mini"))
    } else if (folder == "longer") {
        keep("gFID_longer", member("FD-mini"))
        keep("recognised_longer", member("recognised %"))
    } else if (folder == "probed") {
        keep("probe_few", member("probe whole latent %"))
        keep("probe_mean_few", member("probe mean latent %"))
    } else if (folder == "guided" || folder == "sampled") {
        split(word("generator"), subject, ", ") # path, "20 steps", "guidance 1.5"
        at = (folder == "guided" ? substr(subject[3], 10) : subject[2]) + 0
        keep_point(folder, member("FD-mini"))
        if (folder == "guided" && at > 1) keep_best(at, member("FD-mini") + 0)
    } else {
        for (i in eval_names) {
            name = substr(eval_names[i], 1, index(eval_names[i], " ") - 1)
            keep(name, member(substr(eval_names[i], length(name) + 2)))
        }
    }
}
function keep_best(scale, value) {
    if ((run, "gFID_cfg", seed) in final && final[run, "gFID_cfg", seed] <= value) return
    final[run, "gFID_cfg", seed] = value
    final[run, "scale", seed] = scale
    measured[run, "gFID_cfg", seed] = processor
}

# ---- means, noise, verdicts

function on_scale(score, value) { return score ~ /FID|LPIPS|^[ST]V$|^guided$|^sampled$/ ? log(value) : value }

# A run's score with one seed; "": there is none. RUN@AT is a point of seed 1's curve.
function score_of(run, score, seed,    part) {
    if (split(run, part, "@") == 2) return seed == 1 && (part[1], score, part[2]) in curve ? curve[part[1], score, part[2]] : ""
    return (run, score, seed) in final ? final[run, score, seed] : ""
}
# How many seeds there are of a score; their mean and deviation go to `mean` and `deviation`.
function gather(run, score, scaled,    seed, value, sum, squares, n) {
    for (seed = 1; seed <= 3; seed++) {
        value = score_of(run, score, seed)
        if (value == "") continue
        if (scaled) value = on_scale(score, value)
        sum += value
        squares += value * value
        n++
    }
    mean = n ? sum / n : 0
    deviation = n > 1 && squares > sum * mean ? sqrt((squares - sum * mean) / (n - 1)) : 0
    return n + 0
}

# The deviation between seeds, pooled; 0: not known.
function noise(score,    run, sum, n) {
    if (score ~ /^gFID_|^guided$|^sampled$/) score = "gFID"
    if (score == "recognised_longer") score = "recognised"
    for (run in label) {
        if (gather(run, score, 1) < 2) continue
        sum += deviation * deviation
        n++
    }
    noise_runs = n + 0
    return n ? sqrt(sum / n) : 0
}

# The mean over the seeds that a claim's runs have in common.
function common_mean(run, score, scaled,    seed, sum) {
    for (seed in common) sum += scaled ? on_scale(score, score_of(run, score, seed)) : score_of(run, score, seed)
    return sum / seeds
}

# 1: a stands to b as `relation` says; -1: it does not; 0: the noise hides it.
function verdict(score, a, relation, b,    difference, limit) {
    difference = common_mean(b, score, 1) - common_mean(a, score, 1)
    limit = 2 * noise(score) * sqrt(2 / seeds)
    if (!limit) return 0
    if (relation == "=") return difference <= limit && -difference <= limit ? 1 : -1
    if (relation == ">") difference = -difference
    return difference > limit ? 1 : difference < -limit ? -1 : 0
}

# ---- writing

function number(score, value) { return sprintf("%." decimals[score] "f", value) }
function cell(run, score,    n) {
    n = gather(run, score, 0)
    if (!n) return "–"
    return number(score, mean) (n > 1 ? " ± " number(score, deviation) : "") (elsewhere(run, score) ? " †" : "")
}
function elsewhere(run, score,    seed) {
    for (seed = 1; seed <= 3; seed++) if ((run, score, seed) in measured && measured[run, score, seed] != most) return 1
    return 0
}

function fill() {
    if (/^<!-- end -->/) skipping = 0
    if (skipping) return
    if (match($0, /<!-- claim: .* -->/)) $0 = substr($0, 1, RSTART + RLENGTH - 1) claim(substr($0, RSTART + 12, RLENGTH - 16))
    print
    if (/^<!-- (table|ours): /) table()
    if (/^<!-- noise: /) noise_table()
    if (/^<!-- processors: /) processor_table()
    if (/^<!-- (table|ours|noise|processors): /) skipping = 1
}

# The words of a place, after "table: " and the like: scores, and behind a second colon runs.
function place(    text, half) {
    text = $0
    sub(/^<!-- [a-z]+: */, "", text)
    sub(/ *-->.*/, "", text)
    split(text, half, / *: */)
    score_count = split(half[1], scores, " ")
    run_count = split(half[2], runs, " ")
}

function table(    r, s, has) {
    place()
    for (s = 1; s <= score_count; s++) {
        for (r = 1; r <= run_count; r++) if ((runs[r], scores[s]) in published) has[s] = 1
    }
    if (/^<!-- table: /) rows("The paper", 1, has)
    rows("Ours", 0, has)
}
function rows(heading, papers, has,    r, s, line, rule, row) {
    for (s = 1; s <= score_count; s++) {
        if (papers && !has[s]) continue
        line = line " " (papers ? paper_title(scores[s]) : title[scores[s]]) " |"
        rule = rule "---|"
    }
    print "\n| " heading " |" line "\n|---|" rule
    for (r = 1; r <= run_count; r++) {
        row = "| " label[runs[r]] " |"
        for (s = 1; s <= score_count; s++) {
            if (!papers) row = row " " cell(runs[r], scores[s]) " |"
            else if (has[s]) row = row " " ((runs[r], scores[s]) in published ? published[runs[r], scores[s]] : "–") " |"
        }
        print row
    }
    if (!papers) print ""
}
function paper_title(score,    text) {
    text = title[score]
    gsub(/-mini/, "", text)
    gsub(/FD/, "FID", text)
    return text
}

function noise_table(    s, value, log_scale) {
    place()
    print "\n| score | deviation between seeds | runs with several |\n|---|---|---|"
    for (s = 1; s <= score_count; s++) {
        value = noise(scores[s])
        log_scale = on_scale(scores[s], 2) != 2
        if (!value) value = "not known yet"
        else value = log_scale ? sprintf("%.1f %%", 100 * value) : sprintf("%." decimals[scores[s]] + 1 "f", value)
        print "| " title[scores[s]] " | " value " | " noise_runs " |"
    }
    print ""
}

function processor_table(    name) {
    print "\n| processor | lines of results | the last of them | mark |\n|---|---|---|---|"
    print "| " most " | " lines[most] " | " date[most] " | |"
    for (name in lines) if (name != most) print "| " name " | " lines[name] " | " date[name] " | † |"
    print ""
}

# "SCORE: A < B = C": what the line says.
function claim(text,    half, part, n, i, score, seed, has, result, worst, ours, papers, mixed) {
    split(text, half, / *: */)
    score = half[1]
    n = split(half[2], part, " ")
    for (seed in common) delete common[seed]
    seeds = 0
    for (seed = 1; seed <= 3; seed++) {
        has = 1
        for (i = 1; i <= n; i += 2) if (score_of(part[i], score, seed) == "") has = 0
        if (!has) continue
        common[seed] = 1
        seeds++
        for (i = 3; i <= n; i += 2) if (measured[part[i], score, seed] != measured[part[1], score, seed]) mixed = " †"
    }
    if (!seeds) return " **not run yet**"
    worst = 1
    for (i = 1; i <= n; i += 2) {
        ours = ours (i > 1 ? " " part[i - 1] " " : "") number(score, common_mean(part[i], score, 0))
        papers = papers (i > 1 ? " " part[i - 1] " " : "") ((part[i], score) in published ? published[part[i], score] : "–")
        if (i == 1) continue
        result = verdict(score, part[i - 2], part[i - 1], part[i])
        if (result < worst) worst = result
    }
    result = worst == 1 ? "reproduced" : worst == 0 ? "not decidable at this noise" : "not reproduced"
    return " **" result "** (" title[score] " " ours ", " seeds (seeds > 1 ? " seeds" : " seed") mixed \
        (papers ~ /–/ ? "" : "; the paper's " papers) ")"
}

# ---- plots: lines for dev/plot.cu

function point(panel, x_label, y_label, axis, series, x, y) {
    printf "%s\t%s\t%s\t%s\t%s\t%.9g\t%.9g\n", panel, x_label, y_label, axis, series, x, y
}
# Steps that came before a run.
function before(run) { return from[run] in steps ? before(from[run]) + steps[from[run]] : 0 }
# A run's curve of a score, to be drawn from step x on, in ascending order.
function draw(panel, x_label, y_label, axis, series, run, score, x,    key, part, n, at, i, k) {
    for (key in curve) {
        split(key, part, SUBSEP)
        if (part[1] != run || part[2] != score) continue
        for (k = ++n; k > 1 && at[k - 1] > part[3] + 0; k--) at[k] = at[k - 1]
        at[k] = part[3] + 0
    }
    for (i = 1; i <= n; i++) point(panel, x_label, y_label, axis, series, x + at[i], curve[run, score, at[i]])
}

function figure3(    s, r, i, runs, n, score) {
    n = split("PSNR rFID probe probe_mean", score, " ")
    for (s = 1; s <= n; s++) {
        split("stage1 stage2 full stage1 weight0 weight0_full", runs, " ")
        for (r = 1; r <= 6; r++) {
            draw(title[score[s]], "steps of stages 1, 2, 3", "", "linear",
                 r > 3 ? "without semantic loss" : "with semantic loss", runs[r], score[s], before(runs[r]))
        }
    }
}
function figure4(    r, runs) {
    split("vae_ema vavae_ema full", runs, " ")
    for (r = 1; r <= 3; r++) draw("no guidance", "sampling steps", "gFD-mini", "points", label[runs[r]], runs[r], "sampled", 0)
    for (r = 1; r <= 3; r++) draw("20 steps", "guidance scale", "gFD-mini", "linear", label[runs[r]], runs[r], "guided", 0)
    for (r = 1; r <= 3; r++) draw("20 steps, no guidance", "training steps", "gFD-mini", "linear", label[runs[r]], runs[r], "gFID", 0)
}

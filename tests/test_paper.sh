#!/bin/sh
# dev/paper.sh and what belongs to it: a run is trained once, goes on where it was stopped, and is trained anew with all
# that stands on it when its settings change; scores that stand in the results are kept where the runs are gone; verdicts
# follow their rule; the page is what the raw numbers make of it; plot draws, and refuses what it cannot draw. The programs
# that train and measure are stand-ins here, which note that they were called.
# Usage: sh tests/test_paper.sh BUILD_FOLDER
set -u
passed=0
failed=0
ok() { printf 'ok   %s\n' "$1"; passed=$((passed + 1)); }
fail() { printf 'FAIL %s%s\n' "$1" "${2:+ ($2)}"; failed=$((failed + 1)); }
same() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "$2 instead of $3"; fi; }
said() { if grep -q -- "$2" "$work/said"; then ok "$1"; else fail "$1" "$(tail -n 2 "$work/said")"; fi; }
build=$(cd "$1" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/aligntok_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
export JOBS=2

# ---- the page of the repository
awk -f dev/paper/page.awk dev/paper/runs.txt dev/paper/published.txt docs/results/paper.jsonl docs/paper.md >"$work/page"
if cmp -s "$work/page" docs/paper.md; then ok "docs/paper.md is what the raw numbers make of it"
else fail "docs/paper.md is what the raw numbers make of it" "sh dev/paper.sh page; $(diff "$work/page" docs/paper.md | sed -n 2p)"; fi

# ---- the runs, with stand-ins
mkdir -p "$work/dev" "$work/docs/results" "$work/build/cpu" "$work/miniature"
: >"$work/miniature/vgg.safetensors"
cp -r dev/paper dev/paper.sh "$work/dev"
cd "$work" || exit 1
cat >train_tokenizer <<'END'
#!/bin/sh
echo "$0 $*" >>calls
while [ $# -gt 0 ]; do
    case $1 in
    -json) echo '{"measure": "any", "PSNR": 20, "FD-mini": 3}' >>"$2" ;;
    -out) mkdir -p "$2" ;;
    esac
    shift
done
[ ! -e broken ]
END
chmod +x train_tokenizer
for program in train_dit eval build/cpu/pretrain; do cp train_tokenizer $program; done
cp "$build/plot" build/cpu
echo '<!-- table: PSNR: stage1 weight5 --><!-- end -->' >docs/paper.md
calls() { if [ -e calls ]; then wc -l <calls | tr -d ' '; else echo 0; fi; rm -f calls; }

sh dev/paper.sh table2 >said 2>&1
same "a table is run: 2 encoders, 4 tokenizers, 2 transformers" "$(calls)" $((2 + 4 * 2 + 2 * 3))
sh dev/paper.sh table2 >said 2>&1
same "  once" "$(calls)" 0
sed 's/^mae .*-stage 2 /&-w_gan 0 /' dev/paper/runs.txt >new && mv new dev/paper/runs.txt
sh dev/paper.sh table2 >said 2>&1
same "another flag: this run anew, with its transformer" "$(grep -c "1/mae[ /]" calls) of $(calls)" "5 of 5"
sed 's/^siglip1 .*-stage 1 /&-w_gan 0 /' dev/paper/runs.txt >new && mv new dev/paper/runs.txt
sh dev/paper.sh table2 >said 2>&1
same "  and what stands on it" "$(grep -c siglip calls) of $(calls)" "7 of 7"
touch broken
sed 's/^mae .*-w_gan 0/&.5/' dev/paper/runs.txt >new && mv new dev/paper/runs.txt
if sh dev/paper.sh table2 >said 2>&1; then fail "a run that fails ends the table"; else ok "a run that fails ends the table"; fi
said "  and says where to look" 'error: see the end of runs/paper/1/mae/log'
rm broken calls
sh dev/paper.sh table2 >said 2>&1
same "  the next time it goes on" "$(grep -c "1/mae[ /]" calls) of $(calls)" "5 of 5"

results=docs/results/paper.jsonl
same "each job's scores stand in the results once, with settings, processor and date" \
    "$(grep -c '"settings": "[0-9a-f]*", "processor": ".*", "date": "20..-..-..", "measure"' $results) of $(wc -l <$results)" "6 of 6"
cp $results before
rm -r runs
sh dev/paper.sh table2 >said 2>&1
same "the runs are gone: what has scores is not run" "$(calls)" 0
grep -v '"mae".*"dit"' before >$results
sh dev/paper.sh table2 >said 2>&1
same "  what has none is, after what it needs, which is not measured again" \
    "$(grep -c "^./eval" calls) of $(calls), $(grep -v '"mae".*"dit"' $results | cmp - before 2>&1 | grep -c differ)" "1 of 6, 1"
sed 's/^siglip .*-stage 2 /&-w_gan 0 /' dev/paper/runs.txt >new && mv new dev/paper/runs.txt
rm -r runs
sh dev/paper.sh table2 >said 2>&1
same "  other settings: other scores in their place" \
    "$(grep -c "1/siglip[ /]" calls) of $(calls), $(grep -c '"siglip"' $results) of $(wc -l <$results)" "5 of 7, 2 of 6"
sh dev/paper.sh table99 >said 2>&1
said "a table that is none" 'error: there is no table99; the tables are: table1'

# ---- verdicts
scores() { # RUN SEED PROBE
    echo "{\"run\": \"$1\", \"seed\": $2, \"at\": 9, \"folder\": \"$1\", \"measure\": \"probe\", \"probe whole latent %\": $3}"
}
{
    scores stage1 1 80.0; scores stage1 2 81.0; scores stage1 3 82.0 # deviation 1
    scores stage2 1 78.0; scores stage2 2 79.0; scores stage2 3 80.0 # deviation 1: 2 below, the limit is 2 sqrt(2 / 3) = 1.63
    scores weight5 1 82.7; scores weight10 1 82.9                    # one seed each: seed 1 counts, the limit is 2 sqrt(2) = 2.83
} >docs/results/paper.jsonl
cat >page.md <<'END'
a <!-- claim: probe: stage2 < stage1 --> old words
b <!-- claim: probe: stage1 < stage2 -->
c <!-- claim: probe: stage1 < weight5 -->
d <!-- claim: probe: stage1 < weight10 -->
e <!-- claim: probe: stage2 < stage1 < weight5 -->
f <!-- claim: probe: weight5 = weight10 -->
g <!-- claim: probe: stage2 = stage1 -->
h <!-- claim: probe: stage1 > lora -->
i <!-- claim: probe: stage2@9 < stage1@9 -->
END
awk -f dev/paper/page.awk dev/paper/runs.txt dev/paper/published.txt docs/results/paper.jsonl page.md >verdicts
verdict() { same "verdict $1" "$(sed -n "s/^$1 .*--> \*\*\([^*]*\)\*\*.*/\1/p" verdicts)" "$2"; }
verdict a reproduced
verdict b "not reproduced"
verdict c "not decidable at this noise"
verdict d reproduced
verdict e "not decidable at this noise"
verdict f reproduced
verdict g "not reproduced"
verdict h "not run yet"
verdict i "not decidable at this noise"
{
    scores stage1 1 80.0; scores stage1 2 81.0; scores stage2 1 90.0
} | sed 's/"measure"/"processor": "one", "date": "2026-01-02", &/; /stage2/s/one/other/' >mixed.jsonl
cat >page.md <<'END'
<!-- ours: probe: stage1 stage2 -->
<!-- end -->
<!-- processors: -->
<!-- end -->
j <!-- claim: probe: stage1 < stage2 -->
END
awk -f dev/paper/page.awk dev/paper/runs.txt dev/paper/published.txt mixed.jsonl page.md >marked
same "scores of two processors are marked, and verdicts between them" "$(grep -c '90.0 † |' marked) $(grep -c '1 seed †;' marked)" "1 1"
same "  and counted" "$(grep -c '^| one | 2 | 2026-01-02 | |$' marked) $(grep -c '^| other | 1 | 2026-01-02 | † |$' marked)" "1 1"
same "a verdict shows the numbers" "$(sed -n 's/^a .*(//p' verdicts)" "probe % 79.0 < 81.0, 3 seeds; the paper's 35.09 < 41.53)"

# ---- plot
points() { printf 'panel\tx\ty\tlinear\tseries\t%s\t%s\n' "$@"; }
plot() { "$build/plot" "$@" >said 2>&1; }
if points 1 2 2 3 5 1 | plot picture.png && [ "$(head -c 4 picture.png | tail -c 3)" = PNG ]; then ok "plot: a curve"
else fail "plot: a curve" "$(cat said)"; fi
refuses() { if plot "$2" <lines; then fail "plot: $1"; else said "plot: $1" "$3"; fi; }
printf 'a\tb\tc\n' >lines; refuses "too few fields" p.png 'line 1 has 3 fields, not 7'
points 1 2 3 x >lines; refuses "no number" p.png 'line 2: "x" is no number'
points 2 2 1 2 >lines; refuses "x goes back" p.png 'line 2: x goes back'
points 1 2 | sed s/linear/log/ >lines; refuses "an unknown axis" p.png 'an axis is linear or points, not log'
for i in 1 2 3 4 5 6 7 8 9; do points 1 2 | sed s/panel/$i/; done >lines; refuses "nine panels" p.png 'line 9 begins a panel more than the 8'
for i in 1 2 3 4 5 6 7 8 9; do points 1 2 | sed s/series/$i/; done >lines; refuses "nine series" p.png 'line 9 begins a series more than the 8'
points 1 2 >lines; refuses "no such folder" nowhere/p.png 'nowhere/p.png'
if [ ! -e p.png ]; then ok "plot: leaves no picture behind"; else fail "plot: leaves no picture behind"; fi
: >lines
if plot empty.png <lines && [ -s empty.png ]; then ok "plot: no point is an empty chart"; else fail "plot: no point is an empty chart"; fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

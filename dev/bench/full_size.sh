# full_size.sh: what full_size_dit.sh and full_size_t2i.sh have in common, which read it once $folder and the directory are set:
# the programs, a way to time them, two classes of photographs, and a tokenizer with the decoder of f16d32.
rounds=${ROUNDS:-1}
threads=${THREADS:-2}
export OMP_NUM_THREADS="$threads"
make --no-print-directory CPU=1 build/cpu/train_tokenizer build/cpu/train_dit build/cpu/sample

# timed NAME COMMAND...: output to NAME.log; prints wall and CPU seconds and peak memory
timed() {
    name=$1
    shift
    /usr/bin/time -f '%e %U %S %M' -o "$folder/time" "$@" >"$folder/$name.log" 2>&1 || {
        tail -n 5 "$folder/$name.log" >&2
        echo "error: $name failed; its output is in $folder/$name.log" >&2
        exit 1
    }
    awk -v n="$name" '{ printf "%-18s %8.1f s, CPU %8.1f s, peak memory %6.2f GiB\n", n, $1, $2 + $3, $4 / 1048576 }' "$folder/time"
}

echo "$(date -u '+%Y-%m-%d %H:%M UTC'), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
    "$threads threads, load $(cut -d ' ' -f 1 /proc/loadavg), commit $(git describe --always --dirty)"
mkdir -p "$folder/images/first" "$folder/images/second"
cp tests/images/colour.jpg "$folder/images/first"
cp tests/images/colour.jpg tests/images/grey.jpg "$folder/images/second"
tokenizer=$folder/tokenizer/stage1.safetensors
[ -s "$tokenizer" ] ||
    timed tokenizer build/cpu/train_tokenizer -preset imagenet -encoder dinov2-s -data "$folder/images" -steps 1 -batch 1 -w_gan 0 \
        -latent_images 2 -grid_every 0 -out "$folder/tokenizer"

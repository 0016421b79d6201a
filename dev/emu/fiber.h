// fiber.h: a second stack to run on. A fiber is switched to like a call and resumes where it left; only the registers
// that a call must preserve are exchanged, so a switch costs about as much as a function call.
//
// Stacks are mapped once and kept for the life of the program. Below each lie pages that may not be touched: a kernel
// that needs more stack ends there instead of damaging its neighbour. AddressSanitizer is told of every switch: it
// keeps track of the limits of the stack and of the objects on it.
// Look next at dev/emu/state.h.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifndef EMU_ASAN
#define EMU_ASAN 0
#endif
#if EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { EMU_STACK_BYTES = 256 * 1024, EMU_STACK_GUARD = 4096 * 4 };

struct emu_fiber {
    void* sp;           // where it stopped
    const void* stack;  // lowest address
    size_t stack_bytes;
    void* fake_stack;   // AddressSanitizer's
    emu_fiber* next;    // in the list of free fibers
};

// Stores the callee-saved registers on this stack, its pointer in *save, and continues where `load` was saved.
extern "C" void emu_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(".pushsection .text\n"
    "emu_switch_stack:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".popsection\n");
// six registers, the address that `ret` takes, and a word that keeps the stack aligned
enum { EMU_SAVED_WORDS = 8, EMU_ENTRY_WORD = 6 };
#elif defined(__aarch64__)
asm(".pushsection .text\n"
    "emu_switch_stack:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n    stp x25, x26, [sp, #48]\n"
    "    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n    stp d14, d15, [sp, #144]\n"
    "    mov x2, sp\n    str x2, [x0]\n    mov sp, x1\n"
    "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n    ldp x25, x26, [sp, #48]\n"
    "    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n"
    ".popsection\n");
enum { EMU_SAVED_WORDS = 20, EMU_ENTRY_WORD = 11 };
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

inline emu_fiber emu_host_fiber;                // the stack that launched the kernel
inline emu_fiber* emu_this_fiber = &emu_host_fiber;
inline emu_fiber* emu_last_fiber;               // that this one was switched to from
inline emu_fiber* emu_free_fibers;

// First thing to do on a stack that was switched to.
static inline void emu_after_switch(void) {
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(emu_this_fiber->fake_stack, &emu_last_fiber->stack, &emu_last_fiber->stack_bytes);
#endif
}

static inline void emu_switch_to(emu_fiber* to) {
    emu_fiber* from = emu_this_fiber;
    emu_last_fiber = from;
    emu_this_fiber = to;
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
    emu_switch_stack(&from->sp, to->sp);
    emu_after_switch();
}

// A fiber that will start in `entry`, which never returns; or a free one, which did so and stopped in its switch.
static inline emu_fiber* emu_take_fiber(void (*entry)(void)) {
    emu_fiber* fiber = emu_free_fibers;
    if (fiber) {
        emu_free_fibers = fiber->next;
        return fiber;
    }
    static size_t made = 0;
    char* low = (char*)mmap(NULL, EMU_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                            -1, 0);
    if (low == MAP_FAILED || mprotect(low, EMU_STACK_GUARD, PROT_NONE)) {
        fprintf(stderr, "emulator: no memory for a thread's stack\n");
        abort();
    }
    fiber = (emu_fiber*)calloc(1, sizeof *fiber);
    // Stacks begin at different places in their pages, or all of them would compete for the same lines of the cache.
    char* high = low + EMU_STACK_BYTES - 64 - (made++ % 60) * 64;
    fiber->stack = low + EMU_STACK_GUARD;
    fiber->stack_bytes = (size_t)(high - low) - EMU_STACK_GUARD;
    void** words = (void**)high - EMU_SAVED_WORDS; // zeroed by mmap
    words[EMU_ENTRY_WORD] = (void*)entry;
    fiber->sp = words;
    return fiber;
}
static inline void emu_leave_fiber(emu_fiber* fiber) {
    fiber->next = emu_free_fibers;
    emu_free_fibers = fiber;
}

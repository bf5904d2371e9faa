/* Hides AVX-512 and AMX from a process, so that one machine measures both kinds of CPU.

       cc -O1 -shared -fPIC -o hide_avx512.so benchmarks/hide_avx512.c
       LD_PRELOAD=$PWD/hide_avx512.so python -m benchmarks.benchmark --only=W1 --peers=ENVS

   Libraries choose their code by the instruction CPUID. Linux can make it a fault (arch_prctl,
   where /proc/cpuinfo has cpuid_fault), which is answered here without the bits of these units.
   Threads and child processes are in it too. That reaches every library alike; a flag such as
   xla_cpu_max_isa reaches only its own. The C library itself is linked before, and copies memory
   as always. Linux on x86-64 alone.

   Bits: Intel, "Software Developer's Manual", volume 2A, CPUID. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(i) (1u << (i))

/* Leaf 7, whose EBX, ECX and EDX have them; AVX-512 but for EDX 22, 24 and 25, which are AMX. */
static const uint32_t EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* Its subleaf 1, EAX: AVX-VNNI, AVX512_BF16, AMX-FP16, AVX-IFMA. */
static const uint32_t MORE = BIT(4) | BIT(5) | BIT(21) | BIT(23);

static int allow(int cpuid) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, cpuid); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)regs[REG_RIP];
    uint32_t leaf = regs[REG_RAX], sub = regs[REG_RCX], a, b, c, d;
    (void)number, (void)info;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* a fault of another origin ends the process */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    allow(1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
    allow(0);
    if (leaf == 7 && sub == 0) b &= ~EBX, c &= ~ECX, d &= ~EDX;
    if (leaf == 7 && sub == 1) a &= ~MORE, b = c = d = 0;
    if (leaf == 0x0d && sub == 0) a &= 7; /* the state that the system saves: x87, SSE, AVX */
    if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) a = b = c = d = 0; /* tiles, AVX10 */
    regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;
    regs[REG_RIP] += 2;
}

static int set_action(int number, const struct sigaction *new, struct sigaction *old) {
    static int (*next)(int, const struct sigaction *, struct sigaction *);
    if (!next) next = dlsym(RTLD_NEXT, "sigaction");
    return next(number, new, old);
}

/* Handlers that others set (absl, faulthandler) would take the fault for a crash. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    return set_action(number, number == SIGSEGV ? NULL : new, old);
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    if (set_action(SIGSEGV, &action, NULL) || allow(0)) {
        perror("hide_avx512: this processor or kernel cannot make CPUID a fault");
        exit(2);
    }
}

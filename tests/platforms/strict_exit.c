/* What newer versions of musl do when `exit` is entered again, for an older one: linked with `--wrap=exit`. The same
   thread traps, another one waits for ever. */
#include <unistd.h>

_Noreturn void __real_exit(int status);

_Noreturn void __wrap_exit(int status) {
    static char *entered;
    static __thread char thread;
    char *nobody = 0;
    if (!__atomic_compare_exchange_n(&entered, &nobody, &thread, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        if (nobody == &thread) __builtin_trap();
        for (;;) pause();
    }
    __real_exit(status);
}

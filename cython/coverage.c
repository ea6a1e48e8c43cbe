/* In builds for coverage alone, in every module: what it has counted is written at a normal exit;
   a forked child, which leaves by os._exit, calls this before (tests/covered.py). */

extern void __gcov_dump(void);

void fabric_write_coverage(void);

void fabric_write_coverage(void) {
    __gcov_dump();
}

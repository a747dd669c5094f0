# Entry of every generated trampoline: saves the argument registers where Python can read them, and calls fakecann_plan.
fakecann_entry:
    pushq %rbp
    movq %rsp, %rbp
    subq $128, %rsp
    movq %rdi, -48(%rbp)
    movq %rsi, -40(%rbp)
    movq %rdx, -32(%rbp)
    movq %rcx, -24(%rbp)
    movq %r8, -16(%rbp)
    movq %r9, -8(%rbp)
    movsd %xmm0, -112(%rbp)
    movsd %xmm1, -104(%rbp)
    movsd %xmm2, -96(%rbp)
    movsd %xmm3, -88(%rbp)
    movsd %xmm4, -80(%rbp)
    movsd %xmm5, -72(%rbp)
    movsd %xmm6, -64(%rbp)
    movsd %xmm7, -56(%rbp)
    movl %eax, %edi
    leaq -48(%rbp), %rsi
    leaq -112(%rbp), %rdx
    leaq 16(%rbp), %rcx
    call fakecann_plan@PLT
    leave
    ret
.section .note.GNU-stack,"",@progbits
